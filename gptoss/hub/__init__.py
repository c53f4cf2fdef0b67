"""Models by name: on this machine, whichever tool put them there, or on the Hugging Face Hub."""

from gptoss.hub.download import fetch as fetch
from gptoss.hub.names import EXPECTED as EXPECTED
from gptoss.hub.names import Reference as Reference
from gptoss.hub.names import parse as parse
from gptoss.hub.packed import all_packed as all_packed
from gptoss.hub.packed import pack as pack
from gptoss.hub.packed import packed_copy as packed_copy
from gptoss.hub.places import Place as Place
from gptoss.hub.places import everything as everything
from gptoss.hub.places import is_of as is_of
from gptoss.hub.places import listed as listed
from gptoss.hub.places import title as title
from gptoss.hub.remove import remove as remove
from gptoss.hub.search import Found as Found
from gptoss.hub.search import find as find
from gptoss.hub.search import is_offline as is_offline
from gptoss.hub.search import unreadable as unreadable
