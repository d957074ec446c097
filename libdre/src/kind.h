/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What apps and systems have in common: the functions of <dre/dreapp.h> and <dre/dresys.h>, once for each library.
 * KIND is dre_app or dre_sys, PROGRAM its command. Not installed.
 */
#define _GNU_SOURCE
#include "verbs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOINED(first, second) first##_##second
#define JOIN(first, second) JOINED(first, second)
#define NAME(verb) JOIN(KIND, verb)
#define PUBLIC __attribute__((visibility("default")))

/* --- the handle --- */

PUBLIC int NAME(open)(const struct dre_options *options, KIND **handle)
{
	return dre_handle_open(options, PROGRAM, (struct dre_handle **)handle);
}

PUBLIC void NAME(close)(KIND *handle)
{
	dre_handle_close((struct dre_handle *)handle);
}

PUBLIC const char *NAME(strerror)(KIND *handle)
{
	return dre_handle_error((struct dre_handle *)handle);
}

PUBLIC void NAME(free)(void *result)
{
	free(result);
}

PUBLIC int NAME(call)(KIND *handle, const char *const argv[], char **rows)
{
	struct dre_call call;

	if (argv == NULL || argv[0] == NULL)
		return -EINVAL;
	call = dre_call_of(handle, argv[0]);
	for (size_t at = 1; argv[at] != NULL; at++)
		dre_word(&call, argv[at]);
	return dre_rows_of(&call, rows);
}

/* --- verbs that take a name, and perhaps a tag --- */

static struct dre_call about(KIND *handle, const char *verb, const char *name)
{
	struct dre_call call = dre_call_of(handle, verb);

	dre_place(&call, "the name", name);
	return call;
}

static int simple(KIND *handle, const char *verb, const char *name)
{
	struct dre_call call = about(handle, verb, name);

	return dre_done(&call);
}

/* `snapshot save NAME [TAG]` and its like. */
static struct dre_call of_kept(KIND *handle, const char *what, const char *verb, const char *name)
{
	struct dre_call call = dre_call_of(handle, what);

	dre_word(&call, verb);
	dre_place(&call, "the name", name);
	return call;
}

static int kept(KIND *handle, const char *what, const char *verb, const char *name, const char *tag, int optional)
{
	struct dre_call call = of_kept(handle, what, verb, name);

	if (tag != NULL || !optional)
		dre_place(&call, "the tag", tag);
	return dre_done(&call);
}

static struct dre_call with_seconds(struct dre_call call, const char *option, double seconds)
{
	char text[32];

	if (!(seconds >= 0 && seconds <= 86400) && call.error == 0)
		call.error = dre_fail(call.handle, -EINVAL, "seconds are from 0 to 86400");
	snprintf(text, sizeof text, "%.3f", seconds);
	dre_option(&call, option, text);
	return call;
}

PUBLIC int NAME(stop)(KIND *handle, const char *name, double timeout)
{
	struct dre_call call = about(handle, "stop", name);

	if (!(timeout < 0))
		call = with_seconds(call, "timeout", timeout);
	return dre_done(&call);
}

PUBLIC int NAME(destroy)(KIND *handle, const char *name, int force)
{
	struct dre_call call = about(handle, "destroy", name);

	if (force)
		dre_word(&call, "--force");
	return dre_done(&call);
}

PUBLIC int NAME(restart)(KIND *handle, const char *name)
{
	return simple(handle, "restart", name);
}

PUBLIC int NAME(freeze)(KIND *handle, const char *name)
{
	return simple(handle, "freeze", name);
}

PUBLIC int NAME(thaw)(KIND *handle, const char *name)
{
	return simple(handle, "thaw", name);
}

PUBLIC int NAME(isolate)(KIND *handle, const char *name)
{
	return simple(handle, "isolate", name);
}

PUBLIC int NAME(rejoin)(KIND *handle, const char *name)
{
	return simple(handle, "rejoin", name);
}

PUBLIC int NAME(clone)(KIND *handle, const char *name, const char *copy)
{
	struct dre_call call = about(handle, "clone", name);

	dre_place(&call, "the name of the copy", copy);
	return dre_done(&call);
}

PUBLIC int NAME(exec)(KIND *handle, const char *name, const char *const argv[], const void *input, size_t length,
	struct dre_output **output)
{
	struct dre_call call = about(handle, "exec", name);

	dre_word(&call, "--");
	if ((argv == NULL || argv[0] == NULL) && call.error == 0)
		call.error = dre_fail(call.handle, -EINVAL, "there is no program to run");
	for (; argv != NULL && *argv != NULL; argv++)
		dre_word(&call, *argv);
	return dre_output_of(&call, input, length, output);
}

/* --- what there is --- */

PUBLIC int NAME(list)(KIND *handle, struct dre_container ***list)
{
	struct dre_call call = dre_call_of(handle, "list");

	return dre_containers(&call, list);
}

PUBLIC int NAME(status)(KIND *handle, const char *name, struct dre_container **status)
{
	struct dre_call call = about(handle, "status", name);

	return dre_container_of(&call, status);
}

/* Rates need two looks; the second is what counts. */
static struct dre_call with_rates(struct dre_call call, double seconds)
{
	if (seconds > 0) {
		call = with_seconds(call, "interval", seconds);
		dre_option(&call, "count", "2");
	}
	return call;
}

PUBLIC int NAME(resources)(KIND *handle, const char *name, double seconds, struct dre_resources **resources)
{
	struct dre_call call = with_rates(about(handle, "stat", name), seconds);

	return dre_resources_of(&call, resources);
}

PUBLIC int NAME(limit)(KIND *handle, const char *name, const struct dre_limits *limits)
{
	struct dre_call call = about(handle, "limit", name);

	dre_limits_of(&call, limits);
	return dre_done(&call);
}

/* --- saved states --- */

#define KEPT(what, verb, optional)                                                                                     \
	PUBLIC int NAME(what##_##verb)(KIND *handle, const char *name, const char *tag)                                \
	{                                                                                                              \
		return kept(handle, #what, #verb, name, tag, optional);                                                \
	}

KEPT(snapshot, save, 1)
KEPT(snapshot, load, 1)
KEPT(snapshot, delete, 0)
KEPT(checkpoint, save, 1)
KEPT(checkpoint, restart, 1)
KEPT(checkpoint, delete, 0)

PUBLIC int NAME(snapshot_list)(KIND *handle, const char *name, struct dre_saved ***list)
{
	struct dre_call call = of_kept(handle, "snapshot", "list", name);

	return dre_saved_list(&call, list);
}

PUBLIC int NAME(checkpoint_list)(KIND *handle, const char *name, struct dre_saved ***list)
{
	struct dre_call call = of_kept(handle, "checkpoint", "list", name);

	return dre_saved_list(&call, list);
}

PUBLIC int NAME(undo)(KIND *handle, const char *name, const char *tag)
{
	struct dre_call call = about(handle, "undo", name);

	if (tag != NULL)
		dre_place(&call, "the tag", tag);
	return dre_done(&call);
}
