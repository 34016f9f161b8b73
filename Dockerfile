# One image for every process of the service: API, controller, Ray head, Ray workers, MLflow.
# `docker build -t samstudy .` takes the build of torch that pip finds; on Linux that is the CUDA build.
FROM python:3.11-slim AS base

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true

RUN useradd --create-home --uid 1000 samstudy \
    && mkdir /data \
    && chown samstudy /data

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service ./service
COPY trainers ./trainers
COPY search_spaces ./search_spaces
RUN pip install --constraint constraints.txt ".[postgres,s3]"

USER samstudy
ENV SAMSTUDY_HOME=/data
ENTRYPOINT []
CMD ["samstudy", "--help"]
