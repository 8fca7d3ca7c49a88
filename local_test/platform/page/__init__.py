"""A page that shows the platform in a browser: endpoints, jobs and pipelines while they run."""
