// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "verbs.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- a call --- */

struct dre_call dre_call_of(void *handle, const char *verb)
{
	struct dre_call call = {.handle = handle, .argv = json_object_new_array(), .error = 0};

	if (handle == NULL)
		call.error = -EINVAL;
	dre_word(&call, verb);
	return call;
}

static void add(struct dre_call *call, json_object *word)
{
	if (call->argv == NULL || word == NULL || json_object_array_add(call->argv, word) != 0) {
		json_object_put(word);
		if (call->error == 0)
			call->error = dre_fail(call->handle, -ENOMEM, "no memory");
	}
}

void dre_word(struct dre_call *call, const char *word)
{
	add(call, json_object_new_string(word));
}

void dre_place(struct dre_call *call, const char *what, const char *word)
{
	if (word != NULL && word[0] != '\0' && word[0] != '-')
		dre_word(call, word);
	else if (call->error == 0)
		call->error = dre_fail(call->handle, -EINVAL, "%s is missing, or begins with '-'", what);
}

void dre_option(struct dre_call *call, const char *name, const char *value)
{
	char *text;

	if (value == NULL)
		return;
	if (asprintf(&text, "--%s=%s", name, value) < 0) {
		add(call, NULL);
		return;
	}
	dre_word(call, text);
	free(text);
}

void dre_options_of(struct dre_call *call, const char *name, const char *const *values)
{
	for (; values != NULL && *values != NULL; values++)
		dre_option(call, name, *values);
}

void dre_limits_of(struct dre_call *call, const struct dre_limits *limits)
{
	struct dre_limits given = DRE_LIMITS_INIT;

	if (limits == NULL)
		return;
	memcpy(&given, limits, limits->size < sizeof given ? limits->size : sizeof given);
	dre_option(call, "cpu", given.cpu);
	dre_option(call, "cpus", given.cpus);
	dre_option(call, "memory", given.memory);
	dre_option(call, "pids", given.pids);
	dre_option(call, "io", given.io);
	dre_option(call, "net", given.net);
}

/* Ask; the answer is in *answer*. The call is used up. */
static int ask(struct dre_call *call, const void *input, size_t length, json_object **answer)
{
	*answer = NULL;
	if (call->error != 0) {
		json_object_put(call->argv);
		call->argv = NULL;
		return call->error;
	}
	return dre_ask(call->handle, call->argv, input, length, answer);
}

int dre_done(struct dre_call *call)
{
	json_object *answer;
	int error = ask(call, NULL, 0, &answer);

	json_object_put(answer);
	return error;
}

/* --- results, each one block of memory --- */

/* What is left of a block; it was made large enough. */
struct block {
	char *structs; /* aligned things from here on */
	char *texts;   /* and from here on all texts */
};

enum { POINTERS = 2 }; /* lists in a struct */

/* No text is longer than what it is in JSON, quotes included, nor has a list more items than it has octets there. */
static void *block_of(struct block *block, json_object *rows, size_t count, size_t each)
{
	size_t text = strlen(json_object_to_json_string_ext(rows, JSON_C_TO_STRING_PLAIN)) + 1;
	size_t items = 0;
	char *made;

	for (size_t row = 0; row < json_object_array_length(rows); row++) {
		json_object_object_foreach(json_object_array_get_idx(rows, row), key, value)
		{
			(void)key;
			items += json_object_is_type(value, json_type_array) ? json_object_array_length(value) : 0;
		}
		items += POINTERS;
	}
	made = calloc(1, (count + 1 + items) * sizeof(char *) + count * each + text);
	if (made != NULL) {
		block->structs = made + (count + 1) * sizeof(char *);
		block->texts = made + (count + 1 + items) * sizeof(char *) + count * each;
	}
	return made;
}

static const char *text_of(struct block *block, json_object *value)
{
	const char *text = json_object_get_string(value);
	size_t length = strlen(text) + 1;
	char *place = memcpy(block->texts, text, length);

	block->texts += length;
	return place;
}

static const char *text(struct block *block, json_object *row, const char *key)
{
	json_object *value;

	if (!json_object_object_get_ex(row, key, &value) || !json_object_is_type(value, json_type_string))
		return NULL;
	return text_of(block, value);
}

static const char *const *texts(struct block *block, json_object *row, const char *key)
{
	const char **list = (const char **)(void *)block->structs, **next = list;
	json_object *value;

	if (json_object_object_get_ex(row, key, &value) && json_object_is_type(value, json_type_array))
		for (size_t at = 0; at < json_object_array_length(value); at++) {
			json_object *item = json_object_array_get_idx(value, at);

			if (json_object_is_type(item, json_type_string))
				*next++ = text_of(block, item);
		}
	*next++ = NULL;
	block->structs = (char *)next;
	return list;
}

static double real(json_object *row, const char *key)
{
	json_object *value;

	if (!json_object_object_get_ex(row, key, &value) || json_object_is_type(value, json_type_boolean) ||
	    !(json_object_is_type(value, json_type_int) || json_object_is_type(value, json_type_double)))
		return -1;
	return json_object_get_double(value);
}

static int64_t whole(json_object *row, const char *key)
{
	json_object *value;

	if (!json_object_object_get_ex(row, key, &value) || !json_object_is_type(value, json_type_int))
		return -1;
	return json_object_get_int64(value);
}

static void container(struct block *block, json_object *row, void *made)
{
	struct dre_container *one = made;

	one->name = text(block, row, "name");
	one->state = text(block, row, "state");
	one->ip = texts(block, row, "ip");
	one->snapshots = texts(block, row, "snapshots");
	one->created = text(block, row, "created");
	one->base = text(block, row, "base");
	one->pid = whole(row, "pid");
	one->cpu = real(row, "cpu");
	one->cpu_limit = real(row, "cpu_limit");
	one->memory = whole(row, "memory");
	one->memory_limit = whole(row, "memory_limit");
	one->pids = whole(row, "pids");
}

static void resources(struct block *block, json_object *row, void *made)
{
	struct dre_resources *one = made;

	one->name = text(block, row, "name");
	one->cpu = real(row, "cpu");
	one->cpu_limit = real(row, "cpu_limit");
	one->memory = whole(row, "memory");
	one->memory_limit = whole(row, "memory_limit");
	one->pids = whole(row, "pids");
	one->pids_limit = whole(row, "pids_limit");
	one->io_read = real(row, "io_read");
	one->io_write = real(row, "io_write");
	one->net_rx = real(row, "net_rx");
	one->net_tx = real(row, "net_tx");
	one->oom_kills = whole(row, "oom_kills");
}

static void saved(struct block *block, json_object *row, void *made)
{
	struct dre_saved *one = made;

	one->tag = text(block, row, "tag");
	one->created = text(block, row, "created");
	one->description = text(block, row, "description");
	one->bytes = whole(row, "size");
}

typedef void maker(struct block *block, json_object *row, void *made);

/* A list of pointers that ends with NULL, of all rows; with *list* NULL the caller did not want to know. */
static int listed(struct dre_call *call, maker *make, size_t each, void ***list)
{
	json_object *answer, *rows;
	struct block block;
	size_t count;
	int error;

	if (list == NULL && call->error == 0)
		call->error = dre_fail(call->handle, -EINVAL, "there is no place for the result");
	error = ask(call, NULL, 0, &answer);
	if (list != NULL)
		*list = NULL;
	if (error != 0)
		return error;
	json_object_object_get_ex(answer, "rows", &rows);
	count = json_object_array_length(rows);
	*list = block_of(&block, rows, count, each);
	if (*list == NULL)
		error = dre_fail(call->handle, -ENOMEM, "no memory");
	for (size_t at = 0; error == 0 && at < count; at++) {
		(*list)[at] = block.structs;
		block.structs += each;
		make(&block, json_object_array_get_idx(rows, at), (*list)[at]);
	}
	json_object_put(answer);
	return error;
}

/* The last of them: with rates the one that has them. */
static int single(struct dre_call *call, maker *make, size_t each, void **one)
{
	json_object *answer, *rows;
	struct block block;
	size_t count;
	int error;

	if (one == NULL && call->error == 0)
		call->error = dre_fail(call->handle, -EINVAL, "there is no place for the result");
	error = ask(call, NULL, 0, &answer);
	if (one != NULL)
		*one = NULL;
	if (error != 0)
		return error;
	json_object_object_get_ex(answer, "rows", &rows);
	count = json_object_array_length(rows);
	if (count < 1) {
		error = dre_fail(call->handle, -EPROTO, "an answer without a row");
	} else {
		/* Without a list the room for its pointers lies behind the struct, which comes first. */
		char *made = block_of(&block, rows, 1, each);

		if (made == NULL) {
			error = dre_fail(call->handle, -ENOMEM, "no memory");
		} else {
			block.structs = made + each;
			make(&block, json_object_array_get_idx(rows, count - 1), made);
			*one = made;
		}
	}
	json_object_put(answer);
	return error;
}

int dre_containers(struct dre_call *call, struct dre_container ***list)
{
	return listed(call, container, sizeof(struct dre_container), (void ***)(void *)list);
}

int dre_container_of(struct dre_call *call, struct dre_container **one)
{
	return single(call, container, sizeof(struct dre_container), (void **)(void *)one);
}

int dre_resources_list(struct dre_call *call, struct dre_resources ***list)
{
	return listed(call, resources, sizeof(struct dre_resources), (void ***)(void *)list);
}

int dre_resources_of(struct dre_call *call, struct dre_resources **one)
{
	return single(call, resources, sizeof(struct dre_resources), (void **)(void *)one);
}

int dre_saved_list(struct dre_call *call, struct dre_saved ***list)
{
	return listed(call, saved, sizeof(struct dre_saved), (void ***)(void *)list);
}

/* --- what programs print --- */

static int digit(char letter)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *found = letter != '\0' ? strchr(letters, letter) : NULL;

	return found != NULL ? (int)(found - letters) : -1;
}

/* The octets of base64 *text* to *place*, which has room, and a NUL; how many, or -1. */
static ssize_t decoded(const char *text, char *place)
{
	size_t length = strlen(text), made = 0;
	uint32_t bits = 0;

	if (length % 4 != 0)
		return -1;
	while (length > 0 && length > strlen(text) - 2 && text[length - 1] == '=')
		length--;
	for (size_t at = 0; at < length; at++) {
		int value = digit(text[at]);

		if (value < 0)
			return -1;
		bits = bits << 6 | (uint32_t)value;
		if (at % 4 != 0)
			place[made++] = (char)(bits >> (6 - at % 4 * 2) & 255);
	}
	place[made] = '\0';
	return (ssize_t)made;
}

int dre_output_of(struct dre_call *call, const void *input, size_t length, struct dre_output **output)
{
	json_object *answer, *out, *err, *cut;
	struct dre_output *made;
	ssize_t lengths[2];
	int error;

	if ((output == NULL || (input == NULL && length > 0)) && call->error == 0)
		call->error = dre_fail(call->handle, -EINVAL, "there is no input, or no place for the output");
	error = ask(call, input, length, &answer);
	if (output != NULL)
		*output = NULL;
	if (error != 0)
		return error;
	if (!json_object_object_get_ex(answer, "stdout", &out) || !json_object_is_type(out, json_type_string) ||
	    !json_object_object_get_ex(answer, "stderr", &err) || !json_object_is_type(err, json_type_string)) {
		json_object_put(answer);
		return dre_fail(call->handle, -EPROTO, "an answer without the output");
	}
	made = calloc(1, sizeof *made + (size_t)json_object_get_string_len(out) +
		(size_t)json_object_get_string_len(err) + 2);
	if (made == NULL) {
		error = dre_fail(call->handle, -ENOMEM, "no memory");
	} else {
		char *place = (char *)(made + 1);

		lengths[0] = decoded(json_object_get_string(out), place);
		made->out = place;
		place += lengths[0] + 1;
		lengths[1] = lengths[0] < 0 ? -1 : decoded(json_object_get_string(err), place);
		made->err = place;
		if (lengths[0] < 0 || lengths[1] < 0) {
			error = dre_fail(call->handle, -EPROTO, "an answer whose output is not base64");
			free(made);
			made = NULL;
		} else {
			made->out_length = (size_t)lengths[0];
			made->err_length = (size_t)lengths[1];
			made->status = (int)whole(answer, "status");
			made->truncated = json_object_object_get_ex(answer, "truncated", &cut) &&
				json_object_get_boolean(cut);
		}
	}
	*output = made;
	json_object_put(answer);
	return error;
}

int dre_rows_of(struct dre_call *call, char **found)
{
	json_object *answer, *rows;
	int error = ask(call, NULL, 0, &answer);

	if (found != NULL)
		*found = NULL;
	if (error == 0 && found != NULL) {
		json_object_object_get_ex(answer, "rows", &rows);
		*found = strdup(json_object_to_json_string_ext(rows, JSON_C_TO_STRING_PLAIN));
		if (*found == NULL)
			error = dre_fail(call->handle, -ENOMEM, "no memory");
	}
	json_object_put(answer);
	return error;
}
