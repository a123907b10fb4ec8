"""The key and the URLs of The Context Company, by the names that `contextcompany.config` has."""

from picostep.settings.urls import get_api_key, get_url

__all__ = ["get_api_key", "get_url"]
