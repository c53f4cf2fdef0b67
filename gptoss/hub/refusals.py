"""What the Hub answers instead of a file, as errors that help, or as something to try again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gptoss.errors import Error, shown
from gptoss.hub.names import Reference

TIMEOUT = 30.0  # seconds without a byte


class TryAgain(Exception):
    """What may be over in a moment. pause: seconds that the server asks for."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


@contextmanager
def explained(reference: Reference) -> Iterator[None]:
    """The Hub's refusals as Error, and what may be over in a moment as TryAgain."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = reference.repo
    # Its HTTP client is httpx in version 1, and httpx2 in version 2.
    client = sys.modules[type(get_session()).__module__.partition(".")[0]]
    try:
        yield
    except TryAgain:
        raise
    except GatedRepoError:
        raise Error(
            f"{repo}: is given only to those who agreed to its terms: do so at "
            f"{endpoint()}/{repo}, and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise Error(
            f"{repo}: the Hub has no such repository, or shows it only to those who may see it "
            f"(HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise Error(f"{repo}: has no revision {shown(reference.revision)}") from None
    except HfHubHTTPError as error:
        raise Error(f"{repo}: the Hub refuses: {' '.join(str(error).split())[:300]}") from None
    except (client.TransportError, ConnectionError) as error:
        raise TryAgain(f"{type(error).__name__}: {error}") from None


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
