"""What the Hub cache and the store hold, what needs it, and its removal (`gradelora cache`)."""

from gradelora.cache.entries import Entry

__all__ = ["Entry"]
