"""What S3, or boto3 before it, refuses, as one line for a person: which address, why, and what to do."""

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from deploy.aws import ELSEWHERE, EXPIRED, NO_CREDENTIALS, SIGN_IN, UNKNOWN_KEY, code, message

NO_NETWORK = (exceptions.ConnectionError, exceptions.HTTPClientError)
# The permission behind a call, where it is not called as the call is.
ACTIONS = {
    **dict.fromkeys(("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "PutObject"),
    **dict.fromkeys(("ListObjectsV2", "HeadBucket"), "ListBucket"),
    **dict.fromkeys(("DeleteObjects", "DeleteObject"), "DeleteObject"),
    "HeadObject": "GetObject",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListParts": "ListMultipartUploadParts",
}
DENIED = ("AccessDenied", "AllAccessDisabled", "403")
DAMAGED = ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "InvalidRequest", "XAmzContentChecksumMismatch")
BUSY = ("SlowDown", "ServiceUnavailable", "InternalError", "503", "500", "RequestTimeout")


def explained(error: ClientError | BotoCoreError, uri: str) -> str:
    said = " ".join(str(error).split())
    if isinstance(error, ClientError):
        told = " ".join(message(error).split())
        said, advice = f"{error.operation_name}: {code(error)}: {told}", _advice(error, code(error), told, uri)
    elif isinstance(error, NO_CREDENTIALS):
        advice = SIGN_IN
    elif isinstance(error, NO_NETWORK):
        advice = "is there a network, and does AWS_ENDPOINT_URL, if it is set, name a running server?"
    else:
        advice = ""
    return f"{uri}: {said}" + (f"\n  {advice}" if advice else "")


def _advice(error: ClientError, which: str, told: str, uri: str) -> str:
    bucket = uri.removeprefix("s3://").partition("/")[0]
    action = f"s3:{ACTIONS.get(error.operation_name, error.operation_name)}"
    if which == "NoSuchBucket" or (which == "404" and error.operation_name == "HeadBucket"):
        return f"there is no such bucket: make it (aws s3 mb s3://{bucket}), or look at its name"
    if which in EXPIRED:
        return "the credentials have expired: sign in again, then run the same command: it goes on where it stopped"
    if which == "SignatureDoesNotMatch":
        return "the secret key does not belong to the access key: see AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials"
    if which in UNKNOWN_KEY:
        return f"these credentials are unknown there: {SIGN_IN}"
    if which == "RequestTimeTooSkewed":
        return "this machine's clock is wrong: set it"
    if which in DENIED and "kms" in told.lower():
        return "the bucket encrypts by KMS: you need kms:GenerateDataKey and kms:Decrypt on its key"
    if which in DENIED:
        of = bucket if action.startswith("s3:ListBucket") else f"{bucket}/*"
        return f"you need {action} on arn:aws:s3:::{of}, and no bucket policy against it"
    if which in ELSEWHERE:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        where = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region")
        return f"the bucket is in another region: --region {where or 'REGION'}"
    if which in DAMAGED:
        return "if the bytes were damaged on their way, the same command sends them again"
    if which in BUSY:
        return "S3 is busy, and was at each try: run the same command again in a minute"
    return ""
