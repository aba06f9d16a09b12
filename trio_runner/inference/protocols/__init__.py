"""One small pure module for each wire protocol of an inference service."""
