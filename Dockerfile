# The image: nginx, Python with the frameworks, and the package. It holds no weights: SageMaker mounts them.
#   docker build .                            CPU
#   docker build --build-arg TORCH=cu130 .    CUDA 13.0; the host provides the driver
#   docker build --build-arg EXTRAS="sklearn onnx" .    with scikit-learn and ONNX Runtime: container/requirements-*.txt
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS builder
# pip has a venv of its own, so that the environment that is copied to the image has none. binutils provides strip.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv binutils \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/serve
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/opt/serve/bin/python
COPY container/requirements.txt container/install_torch.sh /build/
RUN /opt/pip/bin/pip install --no-deps -r /build/requirements.txt
# Optional frameworks. For SERVE_ALLOW_PIP pip is a wheel of 2 MB, from which Python runs it without installing.
ARG EXTRAS=""
COPY container/requirements-*.txt /build/
RUN for extra in ${EXTRAS}; do /opt/pip/bin/pip install --no-deps -r "/build/requirements-${extra}.txt" || exit 1; done \
 && /opt/pip/bin/pip download --no-deps --dest /opt/serve/share/pip -r /build/requirements-pip.txt
# After the rest: PyTorch's CPU build takes its dependencies from the pinned packages.
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
# The package `nginx` has no dynamic modules; an inference.py that makes HTTPS requests needs ca-certificates.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates nginx python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/*.log \
           /usr/share/doc /usr/share/man /usr/share/nginx/html

# SageMaker may isolate the network: no library connects to the Hub, for downloads or telemetry.
ENV HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HOME=/tmp/huggingface \
    # Docker or SageMaker decides which clients reach the container. Elsewhere the server listens at loopback.
    SERVE_BIND=0.0.0.0 \
    # Logs are not buffered. The root may be read-only, and the image has all bytecode.
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    # numpy's BLAS would start its threads at import, before the fork; models multiply with torch, not with numpy.
    OPENBLAS_NUM_THREADS=1 \
    # With glibc's default of 8 arenas a core, memory that a model has freed stays in the process.
    MALLOC_ARENA_MAX=2 \
    # Read by the NVIDIA container toolkit, and without effect elsewhere.
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY --from=builder /opt/serve /opt/serve
# SageMaker runs `serve` or `train` from PATH if an image has no ENTRYPOINT: these commands work here too.
COPY container/serve container/train /usr/local/bin/
COPY container/gunicorn.conf.py container/smoke.py container/requirements.txt /opt/program/container/
COPY nginx.conf /opt/program/
COPY serve /opt/program/serve
# With the .pth `python -m serve` works in any directory. Python uses unchecked bytecode without comparing dates.
RUN echo /opt/program >/opt/serve/lib/python3.11/site-packages/serve.pth \
 && /opt/serve/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/program \
 && /opt/serve/bin/python /opt/program/container/smoke.py \
 && rm -rf /tmp/*

EXPOSE 8080
STOPSIGNAL SIGTERM
# Exec form: a shell in between would not forward SIGTERM. No init is needed: the launcher reaps orphans.
ENTRYPOINT ["/opt/serve/bin/python", "-m", "serve"]
CMD ["serve"]
