"""A tag moves, a digest does not: the image of a spec as the URI by which it is deployed."""

import re

from botocore.exceptions import ClientError

from deploy.aws import Aws, Failed, code, message

ECR = re.compile(r"(\d{12})\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")
UNKNOWN_ACCOUNT = "000000000000"


def resolved(aws: Aws, image: str) -> str:
    """HOST/NAME@sha256:... of an image in ECR; any other registry's is taken as it is. Raises Failed."""
    host, name, tag, digest = parts(image)
    if digest or (host and not ECR.fullmatch(host)):
        return image
    found = ECR.fullmatch(host) if host else None
    if found and found[2] != aws.region:
        raise Failed(f"image {image} is in {found[2]}, the endpoint in {aws.region}: push it there too")
    account = found[1] if found else aws.account
    asked = {"registryId": account, "repositoryName": name, "imageIds": [{"imageTag": tag}]}
    try:
        (detail,) = aws.client("ecr").describe_images(**asked)["imageDetails"]
    except ClientError as error:
        if code(error) in ("RepositoryNotFoundException", "ImageNotFoundException"):
            raise Failed(f"{message(error)}\n  push it there: ./build_and_push.sh {name} {tag}") from error
        raise
    return f"{host or _host(account, aws.region)}/{name}@{detail['imageDigest']}"


def unresolved(image: str, region: str) -> str:
    """The same without asking: by its tag, and where no account is named, of none."""
    host, name, tag, _ = parts(image)
    return image if host else f"{_host(UNKNOWN_ACCOUNT, region)}/{name}:{tag}"


def parts(image: str) -> tuple[str, str, str, str]:
    """Registry's host ("" where it is this account's), repository, tag and digest."""
    rest, _, digest = image.partition("@")
    first, slash, after = rest.partition("/")
    host = first if slash and ("." in first or ":" in first or first == "localhost") else ""
    name, _, tag = (after if host else rest).partition(":")
    return host, name, tag or "latest", digest


def _host(account: str, region: str) -> str:
    suffix = ".cn" if region.startswith("cn-") else ""
    return f"{account}.dkr.ecr.{region}.amazonaws.com{suffix}"
