/* SPDX-License-Identifier: Apache-2.0 */
/* The co-process of a handle, and one request to it. Not installed. */
#ifndef DRE_SERVE_H
#define DRE_SERVE_H

#include <dre/dre.h>
#include <json-c/json.h>

#pragma GCC visibility push(hidden)

struct dre_handle;

int dre_handle_open(const struct dre_options *options, const char *program, struct dre_handle **handle);
void dre_handle_close(struct dre_handle *handle);
const char *dre_handle_error(const struct dre_handle *handle);

/* Note why a call on *handle* fails, and return *error*. */
int dre_fail(const struct dre_handle *handle, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/*
 * Ask for *argv*, an array that is consumed, NULL where there was no memory for it. *answer* is the caller's, to be put
 * with json_object_put().
 */
int dre_ask(struct dre_handle *handle, json_object *argv, const void *input, size_t length, json_object **answer);

#pragma GCC visibility pop
#endif
