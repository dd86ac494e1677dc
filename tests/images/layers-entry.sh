#!/bin/sh
# The entrypoint of the image `layers`: tells what it was started with.
for word; do echo "argument: $word"; done
echo "user: $(id -u):$(id -g) $(id -G)"
echo "in: $(pwd)"
echo "variables: $FROM_IMAGE, $CHANGED, $HOME"
