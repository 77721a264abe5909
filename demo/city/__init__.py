"""The synthetic city: a population, what every department knows of it, and the right answers.

Nobody in it exists: the province prefix 99, the districts 990101-990111 and the phone prefix 154 are assigned
to nobody. See docs/city.md for the figures it meets and for what is assumed.
"""

from demo.city.attacks import empty_register, garbage_register
from demo.city.build import (
    File,
    Manifest,
    generate,
    load_deaths,
    load_expected,
    load_flexible_work,
    load_hardship,
    load_manifest,
    load_marital,
    load_overpaid,
    load_residents,
    load_school_places,
    load_separation,
    load_vaccination,
    load_villages,
)
from demo.city.crosstabs import PRIMARY_YEARS, SchoolPlaces, Separation, Villages
from demo.city.expected import DATASETS, Expected
from demo.city.joins import FlexibleWork, Hardship, Moments, Overpaid, Residents
from demo.city.persons import Deaths, MaritalStatus, Uncancelled, keys_sha256
from demo.city.profile import AREA_CODES, PROFILES, SNAPSHOT, Profile
from demo.city.vaccination import Cells, Vaccination

__all__ = [
    "AREA_CODES",
    "DATASETS",
    "PRIMARY_YEARS",
    "PROFILES",
    "SNAPSHOT",
    "Cells",
    "Deaths",
    "Expected",
    "File",
    "FlexibleWork",
    "Hardship",
    "Manifest",
    "MaritalStatus",
    "Moments",
    "Overpaid",
    "Profile",
    "Residents",
    "SchoolPlaces",
    "Separation",
    "Uncancelled",
    "Vaccination",
    "Villages",
    "empty_register",
    "garbage_register",
    "generate",
    "keys_sha256",
    "load_deaths",
    "load_expected",
    "load_flexible_work",
    "load_hardship",
    "load_manifest",
    "load_marital",
    "load_overpaid",
    "load_residents",
    "load_school_places",
    "load_separation",
    "load_vaccination",
    "load_villages",
]
