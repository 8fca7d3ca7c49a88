"""What transformers does at its first load, done at the import of this module: in the forkserver, once for all runners.

It imports its tokenizers, and compiles 900 regular expressions for the names of weights of all architectures.
"""

from transformers import AutoTokenizer  # noqa: F401 - transformers imports it only when it is asked for
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("")  # it makes the table for all architectures, and keeps it
