# The CPU service in a container: docker build -t srstream .
# How it is run, with which folders and limits: docs/operations.md.

FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/srstream
COPY pyproject.toml README.md LICENSE /src/
COPY srstream /src/srstream
COPY trainer /src/trainer
RUN /opt/srstream/bin/pip install --no-cache-dir --disable-pip-version-check /src

FROM python:3.11-slim-bookworm
# libseccomp: with it, the processes that read inputs are confined further (docs/security.md).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libseccomp2 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 990 srstream \
    && useradd --system --uid 990 --gid srstream --home-dir /var/lib/srstream \
        --shell /usr/sbin/nologin srstream \
    && install -d -o srstream -g srstream -m 0750 /var/lib/srstream /run/srstream /etc/srstream \
    && install -d -o srstream -g srstream -m 0770 /srv/srstream/in /srv/srstream/out
COPY --from=build /opt/srstream /opt/srstream
COPY configs/srstream.toml /etc/srstream/srstream.toml

# The folders' variables are those that systemd would set.
ENV PATH=/opt/srstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    STATE_DIRECTORY=/var/lib/srstream \
    RUNTIME_DIRECTORY=/run/srstream \
    CONFIGURATION_DIRECTORY=/etc/srstream \
    XDG_CACHE_HOME=/var/lib/srstream/cache \
    SRSTREAM_READY_FILE=/run/srstream/ready
USER srstream
WORKDIR /var/lib/srstream
VOLUME ["/var/lib/srstream", "/srv/srstream/in", "/srv/srstream/out"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["srstream", "health"]
ENTRYPOINT ["srstream"]
CMD ["serve", "--config", "/etc/srstream/srstream.toml"]
