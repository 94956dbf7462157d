# The server with the CPU's kernels: docker build -t qtransformers . && docker run -p 8642:8642 -v ./models:/models:ro
#   -e QTRANSFORMERS_API_KEY=$(openssl rand -hex 24) qtransformers /models/model.gguf
FROM python:3.12-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m venv /opt/qtransformers && /opt/qtransformers/bin/pip install --no-cache-dir --no-compile ".[serve]"

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --create-home --home-dir /home/qtransformers qtransformers
COPY --from=build /opt/qtransformers /opt/qtransformers
ENV PATH=/opt/qtransformers/bin:$PATH HF_HOME=/home/qtransformers/huggingface PYTHONDONTWRITEBYTECODE=1 \
    QTRANSFORMERS_HOST=0.0.0.0 QTRANSFORMERS_PORT=8642
USER 10001
EXPOSE 8642
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8642/health', timeout=4)"]
ENTRYPOINT ["qtransformers", "serve"]
CMD ["demo"]
