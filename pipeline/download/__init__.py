"""Fetching files from elsewhere: archives and tables (`files`), images of URL lists (`images`). All else about a download
(retries, limits, which hosts may be asked) is decided here, once."""
