# A model bundle as an image, to be mounted as a volume. For local clusters and registries of one's own: the licences of the
# weights (bundle.json) decide who may have it.
FROM scratch
COPY . /
