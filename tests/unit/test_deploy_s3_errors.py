"""An error of S3 as text: the URI, the operation, the reason and the next step."""

import pytest
from botocore.exceptions import ClientError

from deploy.aws import explained_s3

URI = "s3://models/mme/"


@pytest.mark.parametrize(
    ("code", "operation", "advice"),
    [
        ("AccessDenied", "UploadPart", "you need s3:PutObject on arn:aws:s3:::models/*"),
        ("AccessDenied", "ListObjectsV2", "you need s3:ListBucket on arn:aws:s3:::models,"),
        ("AccessDenied", "ListMultipartUploads", "you need s3:ListBucketMultipartUploads on arn:aws:s3:::models,"),
        ("AccessDenied", "ListParts", "you need s3:ListMultipartUploadParts on arn:aws:s3:::models/*"),
        ("AccessDenied", "DeleteObject", "you need s3:DeleteObject on arn:aws:s3:::models/*"),
        ("ExpiredToken", "UploadPart", "have expired: sign in again, then run the same command again; it resumes"),
        ("InvalidAccessKeyId", "PutObject", "unknown credentials: sign in"),
        ("SignatureDoesNotMatch", "PutObject", "the secret key does not belong to the access key"),
        ("RequestTimeTooSkewed", "PutObject", "this machine's clock is wrong"),
        ("PermanentRedirect", "PutObject", "in another region: --region eu-west-1"),
        ("AuthorizationHeaderMalformed", "PutObject", "in another region: --region eu-west-1"),
        ("NoSuchBucket", "PutObject", "create it (aws s3 mb s3://models)"),
        ("BadDigest", "UploadPart", "run the same command again"),
        ("SlowDown", "UploadPart", "run the same command again in a minute"),
    ],
)
def test_an_error_gives_the_next_step(code: str, operation: str, advice: str) -> None:
    headers = {"x-amz-bucket-region": "eu-west-1"}
    response = {"Error": {"Code": code, "Message": "in S3's\nwords"}, "ResponseMetadata": {"HTTPHeaders": headers}}
    said = explained_s3(ClientError(response, operation), URI)
    assert said.startswith(f"{URI}: {operation}: {code}: in S3's words\n  ")
    assert advice in said


def test_a_denied_kms_key_is_distinguished_from_a_denied_bucket() -> None:
    words = "User: x is not authorized to perform: kms:GenerateDataKey on the resource"
    response = {"Error": {"Code": "AccessDenied", "Message": words}}
    said = explained_s3(ClientError(response, "CreateMultipartUpload"), URI)
    assert "you need kms:GenerateDataKey and kms:Decrypt on its key" in said


def test_an_unknown_error_is_printed_as_it_is() -> None:
    response = {"Error": {"Code": "Strange", "Message": "very"}}
    assert explained_s3(ClientError(response, "PutObject"), URI) == f"{URI}: PutObject: Strange: very"
