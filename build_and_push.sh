#!/usr/bin/env bash
# Builds the image and pushes it to this account's ECR: build_and_push.sh [name] [tag]. The last line is its URI@digest.
# TORCH=cu130 builds for CUDA. The region is AWS_REGION, AWS_DEFAULT_REGION or that of the AWS CLI's profile.
set -euo pipefail
if [[ ${1-} == -h || ${1-} == --help ]]; then sed -n '2,/^set /s/^# //p' "$0"; exit; fi
name=${1:-sagemaker-serve}
tag=${2:-latest}
fail() { echo "build_and_push.sh: $*" >&2; exit 1; }
[[ $name != -* ]] || fail "unknown option $name: see --help"

command -v docker >/dev/null || fail "docker is missing: install it, https://docs.docker.com/engine/install"
command -v aws >/dev/null || fail "the AWS CLI is missing: install it, https://docs.aws.amazon.com/cli (or: pip install awscli)"
docker info >/dev/null 2>&1 || fail "no Docker engine answers: start it, or add your user to the group docker"
region=${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}
[[ -n $region ]] || fail "no region: set AWS_REGION, or run 'aws configure'"
ecr() { aws ecr "$1" --region "$region" "${@:2}"; }
account=$(aws sts get-caller-identity --region "$region" --query Account --output text) ||
  fail "AWS does not accept the credentials, or there is no region $region: run 'aws sso login' or 'aws configure', or set AWS_REGION"
registry=$account.dkr.ecr.$region.amazonaws.com
[[ $region != cn-* ]] || registry+=.cn
uri=$registry/$name:$tag

# buildx wraps the image in an index with a provenance record, which SageMaker refuses; the classic builder does not.
provenance=()
if [[ ${DOCKER_BUILDKIT:-1} != 0 ]] && docker buildx version >/dev/null 2>&1; then provenance=(--provenance=false); fi
docker build --platform linux/amd64 "${provenance[@]}" --build-arg TORCH="${TORCH:-cpu}" --tag "$uri" "$(dirname "$0")" ||
  fail "the build failed: see the last lines above"

if ! output=$(ecr describe-repositories --repository-names "$name" 2>&1); then
  [[ $output == *RepositoryNotFound* ]] || fail "ECR did not describe $name in $region (you need ecr:DescribeRepositories): ${output##*$'\n'}"
  old='{"rules": [{"rulePriority": 1, "selection": {"tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 10}, "action": {"type": "expire"}}]}'
  ecr create-repository --repository-name "$name" --image-scanning-configuration scanOnPush=true >/dev/null ||
    fail "ECR did not create the repository $name in $region: you need ecr:CreateRepository"
  ecr put-lifecycle-policy --repository-name "$name" --lifecycle-policy-text "$old" >/dev/null ||
    echo "ECR set no lifecycle policy: untagged images stay in $name and cost; with ecr:PutLifecyclePolicy only 10 are kept" >&2
fi
ecr get-login-password | docker login --username AWS --password-stdin "$registry" >/dev/null ||
  fail "could not log in to $registry: you need ecr:GetAuthorizationToken"
docker push "$uri" || fail "the push failed: you need ecr:PutImage and the ecr:*LayerUpload actions on $name"
docker image inspect --format '{{join .RepoDigests "\n"}}' "$uri" | grep "^$registry/$name@" || fail "the registry reported no digest of $uri: push it again"
