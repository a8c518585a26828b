# An image that carries gpucheck into pods, for the Kubernetes presets.
#
#   make pyz && docker build -f container-image.Dockerfile -t REGISTRY/gpucheck:0.1.0 dist && docker push ...
#
# It holds one file and a shell; what runs it is the Python of the image that serves the model.
FROM busybox:stable
COPY gpucheck.pyz /gpucheck.pyz
