"""The Hub as the stages see it: a retrying client, named errors, and the layout of its cache."""

from gradelora.hub.cache import RepoCache
from gradelora.hub.client import HubClient, Listing

__all__ = ["HubClient", "Listing", "RepoCache"]
