# The local server in a container: CPU PyTorch, the bundled model, a user without rights.
FROM python:3.12-slim
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)"
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
