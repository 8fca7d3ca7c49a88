"""Answers with the object that the request links to, reversed."""

import json

import boto3


def transform_fn(model, body, content_type, accept, context):
    bucket, _, key = json.loads(body)["input"].removeprefix("s3://").partition("/")
    found = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return found[::-1], "text/plain"
