"""Back to nothing: all that was made for an endpoint is deleted, in an order that loses sight of none of it."""

from botocore.exceptions import ClientError

from deploy import configurations, roles, scaling, schedule
from deploy.aws import Aws, Failed, denied
from deploy.ownership import must_be_ours
from deploy.progress import Progress
from deploy.settling import delete, described


def down(name: str, aws: Aws, progress: Progress) -> None:
    """Nothing of the endpoint is left when this returns; what is not there is fine. Raises Failed for another's."""
    there = described(aws, name)
    if there is not None:
        must_be_ours(aws, there)
    scaling.deregister(aws, name, list(scaling.registered(aws, name)), progress)
    if delete(aws, name, progress):
        progress.changed(f"endpoint {name} deleted")
    scaling.sweep_alarms(aws, name, [], progress)
    schedule.remove(aws, name, progress)
    # Models last: they tell the role.
    theirs = configurations.roles_of(aws, list(configurations.models(aws, name)))
    for role in sorted(theirs | set(_own_roles(name))):
        _remove_role(aws, role, name, progress)
    configurations.sweep(aws, name, set(), progress)
    if left := leftovers(name, aws):
        raise Failed(f"of {name} there is still: {', '.join(left)}. Is an `up` running? Then run `down` again")


def leftovers(name: str, aws: Aws) -> list[str]:
    """Everything of an endpoint that is there, by listing every kind of thing that `up` makes."""
    return [
        *([f"endpoint {name}"] if described(aws, name) else []),
        *(f"scalable target {each}" for each in scaling.registered(aws, name)),
        *(f"alarm {each['AlarmName']}" for each in scaling.alarms(aws, name)),
        *schedule.there(aws, name),
        *(f"role {each}" for each in _own_roles(name) if roles.is_for(aws, each, name)),
        *(f"configuration {each}" for each in configurations.configs(aws, name)),
        *(f"model {each}" for each in configurations.models(aws, name)),
    ]


def _own_roles(name: str) -> tuple[str, str]:
    """The roles that are made for an endpoint where its spec names none."""
    return f"{name}-endpoint", schedule.role_name(name)


def _remove_role(aws: Aws, role: str, endpoint: str, progress: Progress) -> None:
    try:
        done = roles.remove(aws, role, endpoint)
    except ClientError as error:
        if not denied(error):
            raise
        progress.say(f"role {role} was not looked at: {error.operation_name} is not allowed")
    else:
        if done:
            progress.changed(f"{done} deleted")
