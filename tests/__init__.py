"""The folders mirror the packages; ``conftest.py`` files hold what the tests below them share."""
