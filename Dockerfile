# Seesaw for hosts with NVIDIA GPUs. For hosts without: Dockerfile.cpu.
#
#   docker build -t seesaw --build-arg TORCH_CUDA_ARCH_LIST=9.0a .    # for H100; for other GPUs see below
#   docker run --gpus all --shm-size 64g -p 8000:8000 -v /path/to/llama:/model:ro \
#       seesaw serve /model --host 0.0.0.0 --prefill P4 --decode T4
#   docker run --gpus all --shm-size 64g seesaw bench offline configs/llama2-7b-2xl4.json --dummy-weights \
#       --dataset constant --input-len 512 --output-len 128 --against T2,P2
#
# --shm-size: with two layouts or more, the workers share one copy of the weights and the host KV pool in /dev/shm, and
# Docker gives a container 64 MB of it. Give it the model's bytes plus --host-kv-bytes, and some more; the engine says
# how much is missing. A static layout needs none of it, but NCCL wants about 1g.
#
# Build arguments:
#   TORCH_CUDA_ARCH_LIST  GPUs to compile kernels for, by spaces: 8.0 A100, 8.6 A10, 8.9 L4 and L40S (the default), 9.0a
#                         H100 and H200, 10.0a B200, 12.0f RTX 50 and RTX Pro 6000. Each adds minutes; on other GPUs the
#                         first start takes them instead.
#   SHAREGPT              true: put the ShareGPT conversations into the image, for `bench`
#   MAX_JOBS              compilers at a time; each takes up to 4 GB of memory
ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 seesaw \
    && install --directory --owner seesaw /opt/seesaw /opt/venv /var/cache/seesaw
USER 10001
WORKDIR /opt/seesaw
ENV PATH=/opt/venv/bin:$PATH SEESAW_CACHE=/var/cache/seesaw PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The wheels that seldom change come first. The devel image is kept at run time too, for what is still to be compiled.
ARG TORCH=2.11.0
RUN python3 -m venv /opt/venv \
    && pip install --index-url https://download.pytorch.org/whl/cu130 "torch==${TORCH}" \
    && echo "torch==${TORCH}" >/opt/venv/constraints.txt
COPY --chown=seesaw . .
RUN pip install --constraint /opt/venv/constraints.txt --editable '.[cuda]'

ARG TORCH_CUDA_ARCH_LIST=8.9
ARG MAX_JOBS=4
ENV MAX_JOBS=${MAX_JOBS}
# One by one, since FlashInfer keeps kernels by the list of architectures: at run time that is the host's one.
RUN for architecture in ${TORCH_CUDA_ARCH_LIST}; do \
        FLASHINFER_CUDA_ARCH_LIST="${architecture}" python scripts/compile_kernels.py || exit; \
    done

ARG SHAREGPT=false
RUN if [ "${SHAREGPT}" = true ]; then python scripts/fetch_sharegpt.py; fi

EXPOSE 8000
ENTRYPOINT ["seesaw"]
CMD ["--help"]
