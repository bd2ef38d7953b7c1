import sys

from spanbert.cli import main

sys.exit(main())
