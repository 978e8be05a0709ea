# The command `fpg-zoo`, on the CPU: docker build -t fpg-zoo .
# On CUDA:                           docker build -t fpg-zoo --build-arg TORCH=https://download.pytorch.org/whl/cu128 .
# docker run --rm -v "$PWD:/work" fpg-zoo predict photos --model mask_rcnn_nano_fpg    (with --gpus all on CUDA)
FROM python:3.12-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH"
COPY . /src
RUN pip install --no-cache-dir "/src[opencv,video,onnx]" && rm -rf /src
RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["fpg-zoo"]
