//! The link against a daemon in this process, and what the agent makes of its news.
