//! Integration tests: the real binary, real sockets, fake workers.
//!
//! One binary, so that it links once. `support` holds the harness; every other module is a topic.

mod support;

mod smoke;
