"""What S3 refuses, told: the address, its words, and what to do."""

import pytest
from botocore.exceptions import ClientError

from deploy.s3_errors import explained

URI = "s3://models/mme/"


@pytest.mark.parametrize(
    ("code", "operation", "advice"),
    [
        ("AccessDenied", "UploadPart", "you need s3:PutObject on arn:aws:s3:::models/*"),
        ("AccessDenied", "ListObjectsV2", "you need s3:ListBucket on arn:aws:s3:::models,"),
        ("AccessDenied", "ListMultipartUploads", "you need s3:ListBucketMultipartUploads on arn:aws:s3:::models,"),
        ("AccessDenied", "ListParts", "you need s3:ListMultipartUploadParts on arn:aws:s3:::models/*"),
        ("AccessDenied", "DeleteObject", "you need s3:DeleteObject on arn:aws:s3:::models/*"),
        ("ExpiredToken", "UploadPart", "have expired: sign in again, then run the same command: it goes on where it"),
        ("InvalidAccessKeyId", "PutObject", "unknown there: sign in"),
        ("SignatureDoesNotMatch", "PutObject", "the secret key does not belong to the access key"),
        ("RequestTimeTooSkewed", "PutObject", "this machine's clock is wrong"),
        ("PermanentRedirect", "PutObject", "in another region: --region eu-west-1"),
        ("AuthorizationHeaderMalformed", "PutObject", "in another region: --region eu-west-1"),
        ("NoSuchBucket", "PutObject", "make it (aws s3 mb s3://models)"),
        ("BadDigest", "UploadPart", "the same command sends them again"),
        ("SlowDown", "UploadPart", "run the same command again in a minute"),
    ],
)
def test_a_refusal_says_what_to_do(code: str, operation: str, advice: str) -> None:
    headers = {"x-amz-bucket-region": "eu-west-1"}
    response = {"Error": {"Code": code, "Message": "in S3's\nwords"}, "ResponseMetadata": {"HTTPHeaders": headers}}
    said = explained(ClientError(response, operation), URI)
    assert said.startswith(f"{URI}: {operation}: {code}: in S3's words\n  ")
    assert advice in said


def test_a_key_of_kms_is_told_from_a_bucket() -> None:
    words = "User: x is not authorized to perform: kms:GenerateDataKey on the resource"
    response = {"Error": {"Code": "AccessDenied", "Message": words}}
    said = explained(ClientError(response, "CreateMultipartUpload"), URI)
    assert "you need kms:GenerateDataKey and kms:Decrypt on its key" in said


def test_what_nobody_foresaw_is_said_as_it_is() -> None:
    response = {"Error": {"Code": "Strange", "Message": "very"}}
    assert explained(ClientError(response, "PutObject"), URI) == f"{URI}: PutObject: Strange: very"
