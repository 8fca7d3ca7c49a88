# The image: nginx, Python with the frameworks, and our package. Weights are never in it: the platform mounts them.
#   docker build .                            CPU
#   docker build --build-arg TORCH=cu130 .    CUDA 13.0; the driver is the host's
#   docker build --build-arg EXTRAS="sklearn onnx" .    with scikit-learn and ONNX Runtime: container/requirements-*.txt
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS builder
# pip has a venv of its own, so that none of it is left in the one that ships; binutils has strip.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv binutils \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/serve
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/opt/serve/bin/python
COPY container/requirements.txt container/install_torch.sh /build/
RUN /opt/pip/bin/pip install --no-deps -r /build/requirements.txt
# Frameworks that not every image needs. pip itself is a wheel, which Python runs as it is: 2 MB, for SERVE_ALLOW_PIP.
ARG EXTRAS=""
COPY container/requirements-*.txt /build/
RUN for extra in ${EXTRAS}; do /opt/pip/bin/pip install --no-deps -r "/build/requirements-${extra}.txt" || exit 1; done \
 && /opt/pip/bin/pip download --no-deps --dest /opt/serve/share/pip -r /build/requirements-pip.txt
# After the rest: PyTorch's CPU build finds all it needs there, pinned.
ARG TORCH=cpu
RUN /build/install_torch.sh /opt/pip/bin/python "${TORCH}" && /opt/pip/bin/pip check
COPY container/slim.py /build/
RUN python3 /build/slim.py /opt/serve

FROM ${BASE}
# The version is serve.__version__: a test compares the two.
LABEL org.opencontainers.image.title="sagemaker-serve" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Many models, one container: inference server for Amazon SageMaker" \
      com.amazonaws.sagemaker.capabilities.multi-models="true" \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port="true"
# `nginx` alone is the server without any dynamic module; ca-certificates for an inference.py that calls out.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates nginx python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/*.log \
           /usr/share/doc /usr/share/man /usr/share/nginx/html

# The platform may give no internet: nothing asks the Hub for anything, nor reports to it.
ENV HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HOME=/tmp/huggingface \
    # Logs leave at once; the root may be read-only, and all bytecode is there already.
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    # numpy's BLAS starts its threads when imported, before the fork; the models' products are torch's, not numpy's.
    OPENBLAS_NUM_THREADS=1 \
    # glibc's default, 8 arenas a core, keeps memory that a model has given back.
    MALLOC_ARENA_MAX=2 \
    # What the NVIDIA container toolkit looks for; without it, plain variables.
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY --from=builder /opt/serve /opt/serve
# Where an image has no ENTRYPOINT the platform runs `serve` or `train` from PATH: that works here too.
COPY container/serve container/train /usr/local/bin/
COPY container/gunicorn.conf.py container/smoke.py container/requirements.txt /opt/program/container/
COPY nginx.conf /opt/program/
COPY serve /opt/program/serve
# The .pth makes `python -m serve` work in any directory; unchecked bytecode is used whatever the files' dates.
RUN echo /opt/program >/opt/serve/lib/python3.11/site-packages/serve.pth \
 && /opt/serve/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/program \
 && /opt/serve/bin/python /opt/program/container/smoke.py \
 && rm -rf /tmp/*

EXPOSE 8080
STOPSIGNAL SIGTERM
# Exec form: a shell in between would keep SIGTERM from the server. No init beside it: it reaps its own orphans.
ENTRYPOINT ["/opt/serve/bin/python", "-m", "serve"]
CMD ["serve"]
