/* SPDX-License-Identifier: GPL-2.0-only */
/* For a guest: put a program of BPF that does nothing at the begin of functions of its kernel, and go to sleep.
 *
 * See bpf(2), linux/bpf.h, linux/btf.h and Documentation/bpf/btf.rst of Linux.
 */
#include <linux/bpf.h>
#include <linux/btf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VMLINUX "/sys/kernel/btf/vmlinux"
#define MOST (64 << 20) /* octets of its types */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* The octets that follow the three words of a type. */
static size_t tail(const struct btf_type *type)
{
	size_t vlen = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_INT:
		return sizeof(__u32);
	case BTF_KIND_ARRAY:
		return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
		return vlen * sizeof(struct btf_member);
	case BTF_KIND_ENUM:
		return vlen * sizeof(struct btf_enum);
	case BTF_KIND_FUNC_PROTO:
		return vlen * sizeof(struct btf_param);
	case BTF_KIND_VAR:
		return sizeof(struct btf_var);
	case BTF_KIND_DATASEC:
		return vlen * sizeof(struct btf_var_secinfo);
	case BTF_KIND_DECL_TAG:
		return sizeof(struct btf_decl_tag);
	case BTF_KIND_ENUM64:
		return vlen * sizeof(struct btf_enum64);
	default:
		return 0;
	}
}

/* The number that function *name* has among the types of the kernel. */
static __u32 number_of(const char *types, const char *name)
{
	const struct btf_header *header = (const void *)types;
	const char *place = types + header->hdr_len + header->type_off, *end = place + header->type_len;
	const char *names = types + header->hdr_len + header->str_off;

	for (__u32 number = 1; place < end; number++) {
		const struct btf_type *type = (const void *)place;

		if (BTF_INFO_KIND(type->info) == BTF_KIND_FUNC && strcmp(names + type->name_off, name) == 0)
			return number;
		place += sizeof(*type) + tail(type);
	}
	fprintf(stderr, "%s: no such function in " VMLINUX "\n", name);
	exit(1);
}

static int bpf(int command, union bpf_attr *attributes)
{
	int fd = (int)syscall(SYS_bpf, command, attributes, sizeof(*attributes));

	if (fd < 0)
		die("bpf");
	return fd;
}

int main(int argc, char **argv)
{
	/* r0 = 0; exit */
	static const struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
	static char types[MOST];
	FILE *stream = fopen(VMLINUX, "rb");

	if (stream == NULL || fread(types, 1, sizeof(types), stream) == 0)
		die(VMLINUX);
	for (int i = 1; i < argc; i++) {
		union bpf_attr load = {
			.prog_type = BPF_PROG_TYPE_TRACING,
			.expected_attach_type = BPF_TRACE_FENTRY,
			.insn_cnt = sizeof(code) / sizeof(code[0]),
			.insns = (__u64)(unsigned long)code,
			.license = (__u64)(unsigned long)"GPL",
			.attach_btf_id = number_of(types, argv[i]),
		};
		union bpf_attr at = {.raw_tracepoint = {.prog_fd = (__u32)bpf(BPF_PROG_LOAD, &load)}};

		bpf(BPF_RAW_TRACEPOINT_OPEN, &at);
		printf("at %s\n", argv[i]);
	}
	fflush(stdout);
	if (fork() == 0) { /* as long as it has the descriptors */
		setsid();
		for (int fd = 0; fd < 3; fd++)
			close(fd);
		pause();
	}
	return 0;
}
