"""A spec with all that only AWS can say filled in: the requests that make its endpoint, checked before any is sent."""

from botocore.exceptions import ClientError

from deploy import images, policies, roles, scaling, service
from deploy.aws import Aws, Failed, denied, is_missing
from deploy.progress import Progress
from deploy.requests import Desired, desired
from deploy.spec import S3, Spec


def plan(spec: Spec, aws: Aws, progress: Progress) -> Desired:
    """All requests, with role and images resolved. Raises SpecError and Failed."""
    uris = {image: images.resolved(aws, image) for image in {spec.image_of(each) for each in spec.variants}}
    # Checked before the role is made, under a role that will be.
    _check(spec, desired(spec, _role_arn(spec, images.UNKNOWN_ACCOUNT, aws.region), uris))
    for uri in sorted({uri for variant in spec.variants if (uri := spec.models_of(variant)[0])}):
        _check_region(aws, uri, _region_of(aws, uri, "models"))
    for key, uri in (*spec.written, *spec.read):
        _region_of(aws, uri, key)
    if spec.role and policies.is_arn(spec.role):
        return desired(spec, spec.role, uris)
    role = policies.of_endpoint(spec, aws.account, aws.region)
    return desired(spec, roles.ensured(aws, role, spec.name, progress, widened=True), uris)


def offline(spec: Spec, region: str) -> Desired:
    """The same without a call: images by their tags, role and registry of account 000000000000."""
    uris = {image: images.unresolved(image, region) for image in {spec.image_of(each) for each in spec.variants}}
    wanted = desired(spec, _role_arn(spec, images.UNKNOWN_ACCOUNT, region), uris)
    _check(spec, wanted)
    return wanted


def _check(spec: Spec, wanted: Desired) -> None:
    """Raises SpecError for what AWS would refuse of any request."""
    wanted.check()
    for name, operation, request in scaling.beside(spec):
        service.check(operation, request, name)


def _region_of(aws: Aws, uri: str, key: str) -> str | None:
    """Where the bucket of a key of the spec is; None where one may not look. Raises Failed where there is none."""
    found = S3.fullmatch(uri)
    assert found, uri  # the spec was checked
    bucket = found[1]
    try:
        place = aws.client("s3").get_bucket_location(Bucket=bucket).get("LocationConstraint") or "us-east-1"
    except ClientError as error:
        if is_missing(error):
            raise Failed(
                f"there is no bucket {bucket}, which the spec names under {key}: make it (aws s3 mb s3://{bucket}), or "
                "mend the spec"
            ) from error
        if denied(error):
            return None  # the endpoint's role may see more than we do
        raise
    return "eu-west-1" if place == "EU" else str(place)  # its name in 2006


def _check_region(aws: Aws, uri: str, place: str | None) -> None:
    """SageMaker reads models from buckets of its own region only."""
    if place not in (None, aws.region):
        raise Failed(
            f"{uri} is in {place}, the endpoint in {aws.region}: SageMaker reads models only from its own region; take "
            "a bucket there, or --region"
        )


def _role_arn(spec: Spec, account: str, region: str) -> str:
    if spec.role and policies.is_arn(spec.role):
        return spec.role
    return policies.arn_of(policies.role_name(spec), account, region)
