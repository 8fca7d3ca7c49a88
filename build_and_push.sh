#!/usr/bin/env bash
# Builds the image and pushes it to this account's ECR: build_and_push.sh [name] [tag]. The last line is its URI@digest.
# TORCH=cu130 builds for CUDA. The region is AWS_REGION, AWS_DEFAULT_REGION or the profile's.
set -euo pipefail

name=${1:-sagemaker-serve}
tag=${2:-latest}

fail() { echo "build_and_push.sh: $*" >&2; exit 1; }

command -v docker >/dev/null || fail "docker is missing: install it, https://docs.docker.com/engine/install"
command -v aws >/dev/null || fail "the AWS CLI is missing: install it, https://docs.aws.amazon.com/cli (or: pip install awscli)"
docker info >/dev/null 2>&1 || fail "no Docker engine answers: start it, or add yourself to the docker group"
region=${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}
[[ -n $region ]] || fail "no region: set AWS_REGION, or run 'aws configure'"
account=$(aws sts get-caller-identity --query Account --output text) ||
  fail "no usable AWS credentials: run 'aws configure' or 'aws sso login', then 'aws sts get-caller-identity' must answer"
domain=amazonaws.com
[[ $region != cn-* ]] || domain=amazonaws.com.cn
registry=$account.dkr.ecr.$region.$domain
uri=$registry/$name:$tag

# buildx would wrap the image in an index with a provenance record, which SageMaker refuses; the classic builder cannot.
provenance=()
if [[ ${DOCKER_BUILDKIT:-1} != 0 ]] && docker buildx version >/dev/null 2>&1; then provenance=(--provenance=false); fi
cd "$(dirname "$0")"
docker build --platform linux/amd64 "${provenance[@]}" --build-arg TORCH="${TORCH:-cpu}" --tag "$uri" . ||
  fail "the build failed: see the last lines above"

aws ecr describe-repositories --region "$region" --repository-names "$name" >/dev/null 2>&1 ||
  aws ecr create-repository --region "$region" --repository-name "$name" --image-scanning-configuration scanOnPush=true >/dev/null ||
  fail "no ECR repository $name in $region, and none could be made: you need ecr:CreateRepository"
aws ecr get-login-password --region "$region" | docker login --username AWS --password-stdin "$registry" >/dev/null ||
  fail "could not log in to $registry: you need ecr:GetAuthorizationToken"
docker push "$uri" || fail "the push failed: you need ecr:PutImage and the ecr:*LayerUpload actions on $name"
docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$uri" | grep -m1 "^$registry/$name@"
