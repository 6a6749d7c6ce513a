"""The packages that are built from this source: wheel, Debian and RPM package, and what an installation takes."""
