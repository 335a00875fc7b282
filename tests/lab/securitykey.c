/*
 * A security key in software, for the tests: the middleware that OpenSSH asks for ecdsa-sk keys (PROTOCOL.u2f and
 * sk-api.h of OpenSSH, version 10 of that interface). It protects nothing. securitykey.py builds it.
 *
 * Its state is beside the library's own file LIB:
 *   LIB.unplugged  while this file is there, no device is found
 *   LIB.waits      while this file is there, a signature waits for a touch: another file, LIB.touch, which it takes
 *   LIB.careless   while this file is there, a signature does not say that somebody touched the device
 *   LIB.log        one line for each thing that was asked: "enroll FLAGS", "sign FLAGS COUNTER", in hexadecimal
 *
 * Its PIN is 2468, for keys that want to be verified. As in a real one, the handle holds the private key, and the
 * device has nothing but a counter (the log's size).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* libcrypto 3, which every program that loads this has; its headers are not needed. */
typedef struct evp_pkey_st EVP_PKEY;
typedef struct evp_md_ctx_st EVP_MD_CTX;
typedef struct evp_md_st EVP_MD;
EVP_PKEY *EVP_PKEY_Q_keygen(void *library, const char *query, const char *type, ...);
void EVP_PKEY_free(EVP_PKEY *key);
size_t EVP_PKEY_get1_encoded_public_key(EVP_PKEY *key, unsigned char **point);
int i2d_PrivateKey(const EVP_PKEY *key, unsigned char **out);
EVP_PKEY *d2i_AutoPrivateKey(EVP_PKEY **key, const unsigned char **in, long size);
const EVP_MD *EVP_sha256(void);
int EVP_Digest(const void *data, size_t size, unsigned char *out, unsigned *out_size, const EVP_MD *kind, void *engine);
EVP_MD_CTX *EVP_MD_CTX_new(void);
void EVP_MD_CTX_free(EVP_MD_CTX *context);
int EVP_DigestSignInit(EVP_MD_CTX *context, void **inner, const EVP_MD *kind, void *engine, EVP_PKEY *key);
int EVP_DigestSign(EVP_MD_CTX *context, unsigned char *out, size_t *out_size, const unsigned char *data, size_t size);

/* What OpenSSH and its middleware hand each other. */
enum { VERSION = 0x000a0000, ECDSA = 0, HASH = 32 };
enum { PRESENCE = 0x01, VERIFICATION = 0x04 };
enum { GENERAL = -1, UNSUPPORTED = -2, WRONG_PIN = -3, NO_DEVICE = -4 };
#define PIN "2468"

struct sk_enroll_response {
	uint8_t flags;
	uint8_t *public_key;
	size_t public_key_len;
	uint8_t *key_handle;
	size_t key_handle_len;
	uint8_t *signature;
	size_t signature_len;
	uint8_t *attestation_cert;
	size_t attestation_cert_len;
	uint8_t *authdata;
	size_t authdata_len;
};

struct sk_sign_response {
	uint8_t flags;
	uint32_t counter;
	uint8_t *sig_r;
	size_t sig_r_len;
	uint8_t *sig_s;
	size_t sig_s_len;
};

/* The path of a file beside the library. */
static const char *beside(const char *ending)
{
	static char path[4096];
	Dl_info info;

	if (!dladdr((void *)beside, &info))
		abort();
	snprintf(path, sizeof(path), "%s.%s", info.dli_fname, ending);
	return path;
}

/* The log with one more line; its size before that, -1 where it cannot be written. */
static long note(const char *what, unsigned flags)
{
	struct stat seen;
	char line[64];
	int log = open(beside("log"), O_WRONLY | O_CREAT | O_APPEND, 0600);

	if (log < 0 || fstat(log, &seen) < 0)
		return -1;
	int size = snprintf(line, sizeof(line), "%s %02x %08lx\n", what, flags, (unsigned long)seen.st_size);
	ssize_t written = write(log, line, size);
	close(log);
	return written == size ? seen.st_size : -1;
}

uint32_t sk_api_version(void)
{
	return VERSION;
}

int sk_enroll(uint32_t kind, const uint8_t *challenge, size_t challenge_size, const char *application, uint8_t flags,
    const char *pin, void **options, struct sk_enroll_response **answer)
{
	struct sk_enroll_response *made;
	EVP_PKEY *key;

	(void)challenge, (void)challenge_size, (void)application, (void)pin, (void)options;
	if (kind != ECDSA)
		return UNSUPPORTED;
	if (access(beside("unplugged"), F_OK) == 0)
		return NO_DEVICE;
	if (note("enroll", flags) < 0 || !(made = calloc(1, sizeof(*made))))
		return GENERAL;
	if (!(key = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256")))
		return GENERAL;
	made->flags = flags;
	made->public_key_len = EVP_PKEY_get1_encoded_public_key(key, &made->public_key);
	made->key_handle_len = i2d_PrivateKey(key, &made->key_handle);
	made->signature = calloc(1, 1); /* of the maker, who is nobody: but there has to be one */
	EVP_PKEY_free(key);
	*answer = made;
	return 0;
}

/* Wait until somebody touches the device, two minutes at most: 0, or -1. */
static int touched(void)
{
	struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };

	for (int left = 12000; left > 0; left--) {
		if (access(beside("waits"), F_OK) != 0 || unlink(beside("touch")) == 0)
			return 0;
		nanosleep(&pause, NULL);
	}
	return -1;
}

/* The next number of a DER signature, a copy; where it ends. */
static const uint8_t *number(const uint8_t *at, uint8_t **out, size_t *size)
{
	*size = at[1];
	if ((*out = malloc(*size)))
		memcpy(*out, at + 2, *size);
	return at + 2 + *size;
}

int sk_sign(uint32_t kind, const uint8_t *data, size_t size, const char *application, const uint8_t *handle,
    size_t handle_size, uint8_t flags, const char *pin, void **options, struct sk_sign_response **answer)
{
	uint8_t message[HASH + 1 + 4 + HASH], signature[128];
	size_t signature_size = sizeof(signature);
	struct sk_sign_response *made;
	EVP_PKEY *key;
	EVP_MD_CTX *context;
	long counter;

	(void)options;
	if (kind != ECDSA)
		return UNSUPPORTED;
	if (access(beside("unplugged"), F_OK) == 0)
		return NO_DEVICE;
	if ((flags & VERIFICATION) && (!pin || strcmp(pin, PIN)))
		return WRONG_PIN;
	if ((flags & PRESENCE) && touched() < 0)
		return GENERAL;
	if ((counter = note("sign", flags)) < 0)
		return GENERAL;
	if (access(beside("careless"), F_OK) == 0)
		flags &= ~PRESENCE;
	if (!EVP_Digest(application, strlen(application), message, NULL, EVP_sha256(), NULL) ||
	    !EVP_Digest(data, size, message + HASH + 5, NULL, EVP_sha256(), NULL))
		return GENERAL;
	message[HASH] = flags;
	for (int i = 0; i < 4; i++)
		message[HASH + 1 + i] = (uint8_t)(counter >> (24 - 8 * i));
	key = d2i_AutoPrivateKey(NULL, &handle, (long)handle_size);
	context = EVP_MD_CTX_new();
	if (!key || !context || EVP_DigestSignInit(context, NULL, EVP_sha256(), NULL, key) != 1 ||
	    EVP_DigestSign(context, signature, &signature_size, message, sizeof(message)) != 1 ||
	    !(made = calloc(1, sizeof(*made))))
		return GENERAL;
	EVP_MD_CTX_free(context);
	EVP_PKEY_free(key);
	made->flags = flags;
	made->counter = (uint32_t)counter;
	/* SEQUENCE, its length, and two INTEGERs of at most 33 bytes: every length is one byte. */
	number(number(signature + 2, &made->sig_r, &made->sig_r_len), &made->sig_s, &made->sig_s_len);
	*answer = made;
	return 0;
}

int sk_load_resident_keys(const char *pin, void **options, void ***keys, size_t *count)
{
	(void)pin, (void)options, (void)keys, (void)count;
	return UNSUPPORTED; /* the device keeps no keys */
}
