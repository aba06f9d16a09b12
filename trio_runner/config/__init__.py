"""A TOML file as one frozen object, checked key by key and rule by rule; credentials and TLS contexts."""
