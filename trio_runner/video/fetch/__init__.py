"""The fetcher child: one object from HTTP or S3 into the cache."""
