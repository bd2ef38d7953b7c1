# The local server in a container: PyTorch, the bundled models, a user without rights.
FROM python:3.12-slim
WORKDIR /app
COPY constraints.txt ./
# PyTorch's own index of CPU builds may be given here: without it the image carries a GPU's libraries, too
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY spanbert spanbert
COPY pretrain pretrain
COPY finetune finetune
COPY web web
RUN grep -v '^torch==' constraints.txt > others.txt \
 && pip install --no-cache-dir -c others.txt ".[serve,documents]" \
 && useradd --system --no-create-home --shell /usr/sbin/nologin server
USER server
WORKDIR /
ENV PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
# 0.0.0.0 is the container's own address; the server does not start on it without a token (SPANBERT_TOKEN)
ENTRYPOINT ["spanbert", "serve", "--host", "0.0.0.0"]
