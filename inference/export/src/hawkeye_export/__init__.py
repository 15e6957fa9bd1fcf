"""Turns published screen-parsing weights into a Hawkeye model bundle (TorchScript files and `bundle.json`)."""

import os

__version__ = "0.1.0"

# ultralytics reads these when it is imported. It must neither install packages, nor probe the network, nor report usage.
# sources.quiet_ultralytics does the rest.
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_VERBOSE"] = "false"
os.environ["ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS"] = "1"
