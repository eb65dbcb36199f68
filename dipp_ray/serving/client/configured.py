"""The way to the shared service that a run's configuration names."""

from dipp_ray.config import RewardSection
from dipp_ray.serving.client.by_handle import HandleTransport
from dipp_ray.serving.client.by_http import OF_RUN, HttpTransport, read_token
from dipp_ray.serving.client.transport import Transport


def transport_of(settings: RewardSection) -> Transport:
    """The way to the shared service that a run's configuration names."""
    if settings.app:
        return HandleTransport(settings.app)
    return HttpTransport(settings.urls, read_token(settings.token), settings.wire_dtype, OF_RUN)
