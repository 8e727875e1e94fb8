# mgc_jax with all that it needs. On a CPU:
#
#     docker build -t mgc_jax .
#     docker run --rm -v "$PWD":/work -v mgc_cache:/cache mgc_jax predict --pretrained=msd_musicnn song.mp3
#
# On NVIDIA GPUs (the host has the driver and the NVIDIA Container Toolkit, the image the rest):
#
#     docker build --build-arg EXTRAS=cuda -t mgc_jax:cuda .
#     docker run --rm --gpus=all -v "$PWD":/work -v mgc_cache:/cache mgc_jax:cuda train --config=demo
FROM python:3.11-slim

ARG EXTRAS=""
WORKDIR /opt/mgc_jax

# Packages first: they are installed anew only where their list changes.
COPY setup.cfg pyproject.toml constraints.txt launch.sh README.md LICENSE ./
COPY mgc_jax/__init__.py mgc_jax/
RUN PIP_NO_CACHE_DIR=1 EXTRAS=$EXTRAS ./launch.sh setup
COPY . .

# Whoever runs it (--user) may write here: compiled functions, weights, and what libraries keep.
RUN mkdir -m 1777 /cache /work
ENV PATH=/opt/mgc_jax/.venv/bin:$PATH HOME=/cache XDG_CACHE_HOME=/cache
WORKDIR /work
ENTRYPOINT ["mgc_jax"]
