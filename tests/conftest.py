"""Settings for every test: two shared cores make wall-clock deadlines of generated cases meaningless."""

from hypothesis import settings

settings.register_profile("minshu", deadline=None)
settings.load_profile("minshu")
