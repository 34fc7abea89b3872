# The one image: each plane's service, and what stands beside them (docs/development/services.md).
#
#   docker build -t agentkeep .        pip's settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) may be given as --build-arg
#
# It runs as user 10001 with a read-only root, and writes to /tmp (a tmpfs) and /var/lib/agentkeep (a volume) only.

FROM python:3.11-slim AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/agentkeep
COPY requirements/embedded.txt /build/requirements.txt
# The lock is all there is to install (requirements/overrides.txt says what it leaves out): nothing more is looked for.
RUN /opt/agentkeep/bin/pip install --no-deps --require-hashes -r /build/requirements.txt
COPY pyproject.toml README.md LICENSE /build/agentkeep/
COPY core /build/agentkeep/core
COPY runtime /build/agentkeep/runtime
COPY gateway /build/agentkeep/gateway
COPY memory /build/agentkeep/memory
COPY identity /build/agentkeep/identity
COPY observability /build/agentkeep/observability
RUN cd /build/agentkeep \
 && /opt/agentkeep/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheel . \
 && /opt/agentkeep/bin/pip install --no-deps /build/wheel/*.whl \
 && /opt/agentkeep/bin/python -m compileall -q /opt/agentkeep/lib

FROM python:3.11-slim
# iptables: for the firewall of sessions, the one service that is given NET_ADMIN. libgomp1: for the local model.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends iptables libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 agentkeep \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin agentkeep \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/agentkeep
COPY --from=build /opt/agentkeep /opt/agentkeep
ENV PATH=/opt/agentkeep/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 8081
ENTRYPOINT ["python", "-m", "agentkeep.service"]
CMD ["--help"]
