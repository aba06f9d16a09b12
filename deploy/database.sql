-- Run once by PostgreSQL's image, on an empty volume: the role that owns trio-runner's database, which is no superuser.
\getenv password POSTGRES_PASSWORD
CREATE ROLE trio_runner LOGIN PASSWORD :'password';
CREATE DATABASE trio_runner OWNER trio_runner;
-- The superuser keeps the socket inside the container and loses the way in over the network.
ALTER ROLE postgres PASSWORD NULL;
