"""What lies below a prefix in S3, and taking it away again."""

import argparse
import json
import sys

from botocore.exceptions import BotoCoreError, ClientError

from deploy import artifacts, s3_errors, upload
from deploy.artifacts import Place
from deploy.contents import Refused
from deploy.pack import sized


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("at", metavar="S3URI", help="s3://bucket/prefix/")
    parser.add_argument("--remove", metavar="NAME", nargs="+", default=[], help="NAME.tar.gz, or NAME/ of a bundle")
    parser.add_argument("--region", help="of the bucket; else as boto3 finds it")
    parser.add_argument("--json", action="store_true", help="a list of objects")


def run(arguments: argparse.Namespace) -> int:
    try:
        at = artifacts.place(arguments.at, arguments.region)
        missing = [name for name in arguments.remove if not _removed(at, name)]
        if not arguments.remove:
            _show(at, arguments.json)
    except (ClientError, BotoCoreError) as error:
        print(f"models: {s3_errors.explained(error, arguments.at)}", file=sys.stderr)
        return 1
    except Refused as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    return 1 if missing else 0


def _removed(at: Place, name: str) -> bool:
    count = artifacts.remove(at, name)
    print(f"{at.uri}{name}: {f'{count} objects removed' if count else 'there is no such model'}", file=sys.stderr)
    return count > 0


def _show(at: Place, as_json: bool) -> None:
    found = list(artifacts.stored(at))
    if as_json:
        print(json.dumps([{"name": each.name, "bytes": each.size, "at": each.changed.isoformat()} for each in found]))
        return
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        print(f"{each.name:<{width}}  {sized(each.size):>7}  {each.changed:%Y-%m-%d %H:%M}")
    for key, _ in upload.unfinished(at.s3, at.bucket, at.prefix):
        print(f"{at.uri.removesuffix(at.prefix)}{key} is not all there: put it again, or --remove it", file=sys.stderr)
