"""Hypothesis settings: no time limit for an example, because the machine may be busy with other tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("vestige-bridge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vestige-bridge")
