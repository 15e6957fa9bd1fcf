import sys

from hawkeye_export.cli import main

sys.exit(main())
