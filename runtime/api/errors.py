"""``semseal.errors``, for ``from semseal.errors import SemsealError``: it is ``semseal.runtime.errors`` itself."""

import sys

from semseal.runtime import errors

sys.modules[__name__] = errors
